"""The harness: scenarios, engines, runner, reports and plots."""
