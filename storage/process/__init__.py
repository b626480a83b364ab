"""What every process needs: locks, logs, and what the processes hold in memory."""
