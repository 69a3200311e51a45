"""The comparison of all methods: plan, measurement, raw records, summary, figures and tables (`kdtw compare`)."""
