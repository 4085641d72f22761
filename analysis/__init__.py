"""What people read of runs: tables now; notes, figures, a report and an audit beside them. Reads run folders only."""
