"""What people can do with a reply besides reading it: buttons below it, and its message's context menu."""
