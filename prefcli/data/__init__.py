"""Select and split battles, join predictions with labels by id, and make synthetic battles."""
