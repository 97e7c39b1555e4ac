"""What a process says about itself: logs now, metrics and traces later."""
