"""Trains Medusa heads for a frozen base model on the base's own answers (`train-medusa`)."""
