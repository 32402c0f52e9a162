#define NAME "steampipe_b"
#include "steampipe.h"
