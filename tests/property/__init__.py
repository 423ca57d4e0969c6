"""Claims about generated policies, actions and batches."""
