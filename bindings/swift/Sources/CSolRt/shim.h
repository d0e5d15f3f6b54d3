// The C interface as Swift sees it where no xcframework brings it.
#include "../../../../core/include/sol_rt.h"
