"""What the watches have shown of jobs, their children and their pods."""
