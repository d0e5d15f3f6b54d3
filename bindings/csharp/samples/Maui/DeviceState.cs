namespace SolRt.Sample;

/// <summary>Battery and temperature of the device, as the governor takes them.</summary>
internal static class DeviceState
{
    internal static SolGovernorReading Read(double? tokensPerSecond)
    {
        var state = Battery.Default.State;
        return new SolGovernorReading
        {
            Battery = Battery.Default.ChargeLevel is >= 0 and var level ? level : null,
            Charging = state == BatteryState.Unknown ? null : state is BatteryState.Charging or BatteryState.Full,
            Thermal = Thermal(),
            TokensPerSecond = tokensPerSecond,
        };
    }

#if ANDROID
    // Forecast ten seconds ahead; 1 is where the system begins to throttle. NaN if it is asked too often, or unknown.
    private static double? Thermal()
    {
        var power = (Android.OS.PowerManager?)Android.App.Application.Context.GetSystemService(Android.Content.Context.PowerService);
        return power?.GetThermalHeadroom(10) is float headroom && !float.IsNaN(headroom) ? headroom : null;
    }
#elif IOS
    private static double? Thermal() => Foundation.NSProcessInfo.ProcessInfo.ThermalState switch
    {
        Foundation.NSProcessInfoThermalState.Nominal => 0.5,
        Foundation.NSProcessInfoThermalState.Fair => 0.85,
        Foundation.NSProcessInfoThermalState.Serious => 0.95,
        Foundation.NSProcessInfoThermalState.Critical => 1.0,
        _ => null,
    };
#else
    private static double? Thermal() => null;
#endif
}
