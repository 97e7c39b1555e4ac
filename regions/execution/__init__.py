"""Where handlers run: the worker, its threads, and the loading of apps."""
