"""Several runs side by side: sweeps of settings, and one report of many run folders."""
