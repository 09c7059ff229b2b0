"""FLOPs, memory and time of training, estimated before it starts. Without torch, so that a launch can use it."""
