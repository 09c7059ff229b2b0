"""Programs that run under the CUDA build of torch on the null GPU; each prints its findings as JSON, last."""
