"""What can be proved about the CUDA kernels on a machine without a GPU; see docs/gpu_proof.md."""
