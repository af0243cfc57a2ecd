"""Architecture adapter for any state dict."""
