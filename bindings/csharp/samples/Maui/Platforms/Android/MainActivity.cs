using Android.App;
using Android.Content.PM;
using Android.Runtime;

namespace SolRt.Sample;

[Activity(Theme = "@style/Maui.MainTheme.NoActionBar", MainLauncher = true,
    ConfigurationChanges = ConfigChanges.ScreenSize | ConfigChanges.Orientation | ConfigChanges.UiMode)]
public sealed class MainActivity : MauiAppCompatActivity
{
}

[Application]
public sealed class MainApplication : MauiApplication
{
    public MainApplication(IntPtr handle, JniHandleOwnership ownership) : base(handle, ownership)
    {
    }

    protected override MauiApp CreateMauiApp() => MauiProgram.CreateMauiApp();
}
