"""Nearest centroids, K-Means and agreement between clusterings."""
