"""Rolling one version of the model to another: what is to be done is decided by pure modules, done by a thin shell."""
