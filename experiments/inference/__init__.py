"""What a saved model is for afterwards: its speed beside others, and other formats."""
