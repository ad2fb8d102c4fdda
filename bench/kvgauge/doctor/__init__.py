"""What this machine can run, and why not the rest. Every check asks and changes nothing."""
