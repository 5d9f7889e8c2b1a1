"""What processes must agree on: records, configuration, errors, placement, pools, run directories. Imports none of ours."""
