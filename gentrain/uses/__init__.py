"""What a trained model is used for: `gentrain sample kind=…`, a class and a YAML file for each kind."""
