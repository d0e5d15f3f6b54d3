using System;

namespace SolRt;

/// <summary>The state of the device. Null and NaN stand for what is not known.</summary>
public sealed class SolGovernorReading
{
    /// <summary>Level of the battery, 0 to 1.</summary>
    public double? Battery { get; set; }

    /// <summary>True if the battery is being charged.</summary>
    public bool? Charging { get; set; }

    /// <summary>0 is cool; at 1 the system begins to throttle, as in Android's thermal headroom.</summary>
    public double? Thermal { get; set; }

    /// <summary>The measured rate.</summary>
    public double? TokensPerSecond { get; set; }
}

/// <summary>
/// Turns the device's state into a budget between two bounds, with hysteresis. Step it every second or every few tokens and hand its budget to
/// <see cref="SolSession.SetBudget"/>. One thread at a time.
/// </summary>
public sealed unsafe class SolGovernor
{
    private NativeGovernorSettings _settings;
    private NativeGovernorState _state;

    /// <param name="lowestBudget">The budget is never lower.</param>
    /// <param name="highestBudget">The budget is never higher.</param>
    /// <param name="tokensPerSecond">The rate to hold; null for none.</param>
    /// <exception cref="SolUsageException">The bounds are not within 0 to 1, or cross.</exception>
    public SolGovernor(double? lowestBudget = null, double? highestBudget = null, double? tokensPerSecond = null)
    {
        fixed (NativeGovernorSettings* settings = &_settings)
        fixed (NativeGovernorState* state = &_state)
        {
            Native.sol_governor_settings_init(settings, (uint)sizeof(NativeGovernorSettings));
            settings->LowestBudget = lowestBudget ?? settings->LowestBudget;
            settings->HighestBudget = highestBudget ?? settings->HighestBudget;
            settings->TokensPerSecond = tokensPerSecond ?? settings->TokensPerSecond;
            state->Size = (uint)sizeof(NativeGovernorState);
            Native.Check(Native.sol_governor_begin(settings, state));
        }
    }

    /// <summary>The budget to run with now.</summary>
    public double Budget => _state.Budget;

    /// <summary>Takes a reading, and returns the budget to run with from now on.</summary>
    public double Step(SolGovernorReading reading)
    {
        _ = reading ?? throw new ArgumentNullException(nameof(reading));
        NativeGovernorReading native = default;
        Native.sol_governor_reading_init(&native, (uint)sizeof(NativeGovernorReading));
        native.Battery = reading.Battery ?? double.NaN;
        native.Charging = reading.Charging is bool charging ? (charging ? 1 : 0) : -1;
        native.Thermal = reading.Thermal ?? double.NaN;
        native.TokensPerSecond = reading.TokensPerSecond ?? double.NaN;
        fixed (NativeGovernorSettings* settings = &_settings)
        fixed (NativeGovernorState* state = &_state)
        {
            Native.Check(Native.sol_governor_step(settings, &native, state));
        }
        return Budget;
    }
}
