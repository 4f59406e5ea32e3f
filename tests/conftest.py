"""What holds for all tests: the package is imported first, and no time that an example takes is judged."""

from hypothesis import HealthCheck, settings

import airserve  # noqa: F401  (what it sets for onnxruntime is to be there before that is loaded)

settings.register_profile("beside others", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("beside others")
