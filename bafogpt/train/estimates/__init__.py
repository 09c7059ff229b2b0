"""What training takes, computed before it is tried: operations, memory, time. No torch here: launches are planned with it."""
