"""`moray tune`: which engine settings carry the most load within the SLO, on the GPU at hand."""
