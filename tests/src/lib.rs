//! Tests larger than a unit: end to end, conformance, crash, damage, model.
