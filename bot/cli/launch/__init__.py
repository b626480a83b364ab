"""How `strop up` starts its child processes, keeps them alive and shows what they say."""
