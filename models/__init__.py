"""Networks, data sets, trained weights and learning recipes in plain PyTorch.

Nothing here knows of the accelerator. Importing this package, or listing the zoo and the recipes, does not import torch.
"""
