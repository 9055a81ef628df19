"""What the fleet costs, measured against the raw limit in the same run."""
