"""What several regions decide together: who belongs to the cluster, who holds what."""
