"""What CherryPy's server lacks: requests that wait without a thread, and /static."""
