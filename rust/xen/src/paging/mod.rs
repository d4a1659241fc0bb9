//! Direct paging: whose frames there are, what type each has, and which entries a guest may put into its page tables.
