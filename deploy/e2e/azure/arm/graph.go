package arm

var graphRoutes = []route{}
