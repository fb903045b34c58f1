"""Many runs become records: the plan, its execution, sizes, conversions and the analysis of angles."""
