"""`moray bench gpu`: the whole stack on a GPU, beside the raw engine and vLLM's own server.

Weights are dummies of the real shapes (nothing is downloaded), so every figure is about speed and none about answers.
"""
