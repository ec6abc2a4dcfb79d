"""`moray calibrate`: a machine's step costs, fitted to what `moray bench gpu` measured, judged on what it held out."""
