"""Architectures of timm."""
