// The C interface as Swift sees it where no xcframework brings it.
#include "../../../c/include/sol_rt.h"
