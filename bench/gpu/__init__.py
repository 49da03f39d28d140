"""What a GPU makes of the CUDA path; needs no model, no network and no package but torch, numpy and Triton."""
