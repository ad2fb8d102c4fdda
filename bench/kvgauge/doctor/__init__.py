"""What this machine can run, and why not the rest. Every check asks and sets nothing."""
