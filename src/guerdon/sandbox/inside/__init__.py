"""What runs inside the sandbox: standard library only, relative imports only, for guerdon is not installed there."""
