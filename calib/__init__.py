"""Text, captured activations, statistics, float evaluation."""
