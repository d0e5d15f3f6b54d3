// Imports that <ImplicitUsings> adds to the console sample.
global using System;
global using System.Collections.Generic;
global using System.Linq;
global using System.Threading;
global using System.Threading.Tasks;
