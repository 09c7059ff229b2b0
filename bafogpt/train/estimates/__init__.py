"""What training needs, before it starts: operations, memory, time. Without torch, so that a launch can use it."""
