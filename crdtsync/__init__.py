"""crdtsync: tasks that keep running when regions are cut off from each other."""
