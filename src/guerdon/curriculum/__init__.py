"""What to try next: how hard each problem is, and how much it should weigh."""
