#define NAME "steampipe_a"
#include "steampipe.h"
