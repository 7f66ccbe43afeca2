"""What is true of the hardware: the HLS library, device facts, performance model."""
