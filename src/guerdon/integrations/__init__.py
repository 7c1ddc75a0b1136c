"""guerdon's rewards, shaping and credit inside other trainers."""
