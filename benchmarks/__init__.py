"""Measures crdtsync. `python -m benchmarks` lists what there is; README.md has the method and the latest figures."""
